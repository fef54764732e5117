"""A Franka arm behind Deoxys' controller."""
