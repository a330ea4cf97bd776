"""Measuring on the device itself: over SSH on Linux, over adb on Android."""
