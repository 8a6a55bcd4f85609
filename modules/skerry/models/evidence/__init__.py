"""What a package carries so that others can judge it: provenance, bill of materials, model card.

Pure functions of what a build recorded. They run where packages are built, and on no device.
"""
