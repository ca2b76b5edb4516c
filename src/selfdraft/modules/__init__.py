"""Lightning modules: the steps of evaluations, calibrations, writing of training texts, and fine-tuning."""
