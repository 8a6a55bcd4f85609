"""Which model packages a device may install, by signed metadata of The Update Framework (TUF).

`Trust` in `skerry.trust.device` is the way in; nothing here signs, builds or talks to a network.
"""
