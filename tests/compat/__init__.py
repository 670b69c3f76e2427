"""Everything that a training loop may do to a gradient transformation."""
