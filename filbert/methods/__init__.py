"""One method, one file: `Config`, its section of params.yaml; `columns(depth)`, what it needs of the teacher; and
`compress(study, config)`, which makes the student."""
