"""What learner and actor share: specs, the diffusion policy, its weights and the wire codec."""
