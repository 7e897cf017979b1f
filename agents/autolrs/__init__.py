"""What AutoLRS is made of: forecasts of losses, and searches for a rate (Jin et al., ICLR 2021)."""
