"""Training of the demo's detector on rendered scenes; `scripts/train_demo_model.py` runs it."""
