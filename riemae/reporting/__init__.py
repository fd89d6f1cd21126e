"""Latent spaces for people: one offline page, and decoders for coordinates made elsewhere."""

from riemae.reporting.document import Report, report
from riemae.reporting.embedding import Fit, FittedDecoder, fit_decoder
from riemae.reporting.findings import Finding

__all__ = ["Finding", "Fit", "FittedDecoder", "Report", "fit_decoder", "report"]
