"""One method, one file: `Config`, its section of params.yaml, and `compress(study, config)`, which makes the student."""
