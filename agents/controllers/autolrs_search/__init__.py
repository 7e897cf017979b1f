"""The search of AutoLRS: forecasts of the loss and Bayesian optimisation."""
