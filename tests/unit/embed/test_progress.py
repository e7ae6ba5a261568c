import logging

from virnucpro.embed.progress import Progress


def test_a_line_comes_when_the_interval_has_passed_and_says_what_is_left(caplog):
    times = iter([0.0, 4.0, 9.0, 12.0, 13.0, 20.0])
    progress = Progress(1000, interval=10, clock=lambda: next(times))
    with caplog.at_level(logging.INFO):
        seconds = [progress.step(100) for _ in range(5)]
    assert seconds == [4.0, 5.0, 3.0, 1.0, 7.0]
    assert [record.getMessage() for record in caplog.records] == [
        " 30.0% of 1000 tokens, 25 tokens/s, 28 s left"
    ]
