"""What solvers ask of a pull-back metric, seen by a test."""

from riemae.geometry.pullback import PullbackMetric


def watch(monkeypatch, **looks):
    """Let functions see the arguments of the pull-back metric's methods of these names."""
    for name, look in looks.items():
        monkeypatch.setattr(PullbackMetric, name, _watched(getattr(PullbackMetric, name), look))


def _watched(method, look):
    def watched(self, *args, **options):
        look(*args, **options)
        return method(self, *args, **options)

    return watched
