"""The texts that sparsecc ships for calibration and evaluation: public-domain English prose."""
