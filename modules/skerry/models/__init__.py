"""Model packages: what they say of themselves, and how they are checked and made."""
