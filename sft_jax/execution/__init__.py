"""What runs: one cohort from its specs to its rows, evaluation alone, and a whole study.

`runner.Run` leads a cohort (`job`, `driver`); `program` and `cohort` are what is compiled and held
on the devices; `study_run` gives out cohorts. Not for the rules of a study, which work on files
alone (`sft_jax.study`).
"""
