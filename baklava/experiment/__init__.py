"""What is to be done: the settings, the jobs made of them, and where every file lies."""
