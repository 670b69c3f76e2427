"""Array craft that knows no physics: noise, rounding, shards, changes in place, dtypes."""
