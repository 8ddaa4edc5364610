"""Tests of `model/`: what goes to model servers and what comes back."""
