"""What all other rooms stand on: settings, atomic files, devices and processes, progress; it imports no other room."""
