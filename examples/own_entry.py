"""An entry of one's own on the board: the strong model begins every solution, at several lengths.

stepwise board --entries threshold examples.own_entry:ENTRY
"""

import stepwise as sw
from stepwise.routing.entries import Entry


class Begin(sw.Policy):
    dial = "steps"

    def __init__(self, steps=1):
        self.steps = steps

    def decide(self, view):
        return sw.Escalate() if view.index < self.steps else sw.Keep()


ENTRY = Entry("strong beginning", lambda data: [Begin(n) for n in range(1, 1 + data.points)], scorer="none")
