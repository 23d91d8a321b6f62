"""Lists that are chosen from by chips: one state at a time, each with how many there are."""

from collections.abc import Mapping
from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse

from audit.admin_base import BaseAdmin


class StateFilter(admin.SimpleListFilter):
    """Which state is listed: `names` are the states in order, with their words, `default` the one without a choice."""

    title, parameter_name = "state", "state"
    names: ClassVar[Mapping[str, str]] = {}
    default = ""

    def conditions(self, request: HttpRequest) -> dict[str, Q]:
        """What each state asks for."""
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return list(self.names.items())

    def chosen(self) -> str:
        """The state that is listed."""
        value = self.value() or ""
        return value if value in self.names else self.default

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(self.conditions(request)[self.chosen()])


class ChipsAdmin(BaseAdmin):
    """A list with chips for its `states`, which stand in `list_filter` too."""

    states: ClassVar[type[StateFilter]]
    change_list_template = "admin/chips_list.html"

    def add_button(self, request: HttpRequest) -> tuple[str, str] | None:
        """Url and words of the button beside the heading."""
        return None

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """The list, with its chips."""
        state = self.states(request, {}, self.model, self)
        each = {
            name: Count("pk", filter=condition) if condition else Count("pk")
            for name, condition in state.conditions(request).items()
        }
        counts = self.get_queryset(request).order_by().aggregate(**each)
        chosen = request.GET.get("state")
        chosen = chosen if chosen in state.names else state.default
        chips = [
            {"url": f"?state={name}", "words": words, "count": counts[name], "on": name == chosen}
            for name, words in state.names.items()
        ]
        more = {"chips": chips, "add_button": self.add_button(request), **(extra_context or {})}
        return super().changelist_view(request, more)
