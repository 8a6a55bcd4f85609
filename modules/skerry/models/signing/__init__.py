"""The side that signs: keys, and a repository of model packages. Never imported on a device."""
