"""SPIE: spectral priors written as words.

What training and maps use is here; data sets are built by `engine.spie.dataset`, which reads rasters and is not imported by the model.
"""
