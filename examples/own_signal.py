"""A routing signal of one's own: the longer a draft, the worse.

stepwise route --set routing.policy=signal --set routing.options.threshold=20 \
    --set routing.options.signal=examples.own_signal:Length
"""

import stepwise as sw


class Length(sw.Signal):
    worse, evidence = "high", "draft"

    def value(self, view):
        return view.tokens
