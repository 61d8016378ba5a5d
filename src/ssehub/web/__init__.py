"""The HTTP side: the public client app and the private control app."""
