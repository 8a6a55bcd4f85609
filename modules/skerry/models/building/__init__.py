"""From a trained model and a spec to a package with evidence. Build side only: no device imports it."""
