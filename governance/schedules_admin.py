"""System > Schedules: what runs in the background, and how often. For reading: the settings say it."""

import django_celery_beat.admin  # noqa: F401  (registers the stock pages, which are taken out below)
from django.contrib import admin
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule

from audit.admin_base import ReadOnlyAdmin
from audit.templatetags.muniment import when

# Whoever changes these decides what a worker runs, with arguments of their choice.
for stock in (PeriodicTask, CrontabSchedule, IntervalSchedule, SolarSchedule, ClockedSchedule):
    admin.site.unregister(stock)


@admin.register(PeriodicTask)
class ScheduleAdmin(ReadOnlyAdmin):
    """Tasks and when they run."""

    intro = "What Muniment does in the background. Celery beat starts it, a worker does it."
    empty = "Nothing yet: Celery beat writes down what it runs when it first starts."
    list_display = ["name", "runs", "last", "state"]
    ordering = ["name"]
    fields = ["name", "task", "runs", "last", "total_run_count", "state"]

    @admin.display(description="runs")
    def runs(self, task: PeriodicTask) -> str:
        return str(task.scheduler)

    @admin.display(description="last started", ordering="last_run_at")
    def last(self, task: PeriodicTask) -> str:
        return when(task.last_run_at, "never")

    @admin.display(description="state", ordering="enabled")
    def state(self, task: PeriodicTask) -> SafeString:
        kind, words = ("allow", "On") if task.enabled else ("plain", "Off")
        return format_html('<span class="pill {}">{}</span>', kind, words)
