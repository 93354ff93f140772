"""What is measured: the commands `streamer bench ...` and `streamer knee`."""
