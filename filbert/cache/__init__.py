"""The teacher's outputs, computed once, stored in Arrow files, verified, and read into batches; and references found for rows."""
