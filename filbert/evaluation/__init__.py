"""What a model scores and costs, and how students compare: metrics, costs, intervals, tables, the page, MLflow records."""
