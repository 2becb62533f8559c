"""The compiled part: clock, hardware access, estimators, controllers, and the simulated vial."""
