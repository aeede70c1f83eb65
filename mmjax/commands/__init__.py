"""Commands whose effects are more than a few lines; `mmjax.cli` has their words."""
