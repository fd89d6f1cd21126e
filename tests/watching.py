"""Records the calls that solvers make to a pull-back metric."""

from riemae.geometry.pullback import PullbackMetric


def watch(monkeypatch, **looks):
    """Pass the arguments of these methods of the pull-back metric to functions of a test."""
    for name, look in looks.items():
        monkeypatch.setattr(PullbackMetric, name, _watched(getattr(PullbackMetric, name), look))


def _watched(method, look):
    def watched(self, *args, **options):
        look(*args, **options)
        return method(self, *args, **options)

    return watched
