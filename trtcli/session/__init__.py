"""The steps that commands are made of: look at what was given, open the device, get the engine, run it, report."""
