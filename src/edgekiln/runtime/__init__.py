"""On the device: opens a bundle and runs it, without torch or converters."""
