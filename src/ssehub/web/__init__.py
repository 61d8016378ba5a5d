"""The two apps: the client app, which is public, and the control app, which is private."""
