from server.frontend.recent import MOST_KEPT, RecentAnswers


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_figures_are_of_the_last_minute() -> None:
    clock = _Clock()
    recent = RecentAnswers(clock)
    assert recent.figures() == (0, 0.0, None, None)
    recent.note(9.0)
    clock.now += 50
    for i in range(1, 101):
        recent.note(i / 1000)
    assert recent.figures()[0] == 101
    clock.now += 11
    answers, per_s, p50_s, p95_s = recent.figures()
    assert (answers, p50_s, p95_s) == (100, 0.050, 0.095), "the slow one is older than a minute"
    assert per_s == 100 / 60


def test_more_than_are_kept_are_of_a_shorter_time() -> None:
    clock = _Clock()
    recent = RecentAnswers(clock)
    for _ in range(2 * MOST_KEPT):
        clock.now += 0.001
        recent.note(0.5)
    answers, per_s, *_ = recent.figures()
    assert answers == MOST_KEPT
    assert abs(per_s - 1000) < 1
