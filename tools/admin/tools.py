"""The pages of tools: declared by their backends or added here; approved, kept suspended, suspended, retired. What
changed since a tool was approved is shown beside what was approved; staff decide on exactly that."""

import json
from collections.abc import Iterable
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import DataError, IntegrityError
from django.db.models import Prefetch
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.html import format_html

from audit.admin_base import Action, PolicyAdmin, PolicyForm, ReasonForm, Refused, act, actor_of, words_of
from tools import approval
from tools.admin.pills import pill
from tools.admin.scopes import sensitive_of
from tools.difference import visible
from tools.models import ApprovedDefinition, Scope, Tool

STARTS = [
    ("active", "Active: it can be called from the next call on, by clients that are granted its scopes"),
    ("suspended", "Suspended: every call of it is refused until somebody approves it"),
]


class ToolForm(PolicyForm):
    """A tool that is added here says whether it can be called; one that exists is approved or suspended by actions."""

    starts = forms.ChoiceField(label="It starts", choices=STARTS, widget=forms.RadioSelect)
    may_loosen: ClassVar[bool] = False

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        if "description" in self.fields:
            self.fields["description"].widget = forms.Textarea(attrs={"rows": 3})
        if self.instance.pk:
            del self.fields["starts"]

    def clean_scopes(self) -> Any:
        """Who grants cannot also take away what makes a grant of the tool take a second person."""
        wanted = self.cleaned_data["scopes"]
        if not self.may_loosen and (lost := loosened(self.instance, wanted)):
            words = "a sensitive scope: only who may change scopes takes one off a tool."
            raise ValidationError(f"{', '.join(map(str, lost))} is {words}")
        return wanted


def loosened(tool: Tool, scopes: Iterable[Scope]) -> list[Scope]:
    """The scopes that the tool needs, would not need any more, and that take a second person to grant."""
    return sensitive_of(set(tool.scopes.all()) - set(scopes)) if tool.pk else []


def _waits(tool: Tool) -> bool:
    """Suspended since a declaration changed it, and nobody decided."""
    kept = approval.approved(tool)
    return tool.status == "suspended" and kept is not None and kept.changed_at is not None


def _drifted(tool: Tool) -> bool:
    """Changed since it was approved, and still callable."""
    kept = approval.approved(tool)
    return tool.status == "active" and kept is not None and kept.changed_at is not None


def _since(tool: Tool, kept: ApprovedDefinition) -> dict[str, Any]:
    """What the templates say of a tool beside what was approved."""
    parts = approval.difference(tool)
    same = [name for name in approval.PARTS.values() if name not in {one.part for one in parts}]
    return {"kept": kept, "parts": parts, "same": same}


@admin.register(Tool)
class ToolAdmin(PolicyAdmin):
    """Tools: declared by their backends, or added here; only active ones can be called."""

    form = ToolForm
    intro = "What backends offer to AI clients. Only active tools can be called."
    empty = "No tool yet. A backend declares its tools (PUT /v1/tools), and they wait here for approval."
    list_display = ["name", "backend", "access", "needs", "state"]
    list_filter = ["status", "backend", "access"]
    list_select_related = ["backend"]
    search_fields = ["name", "description"]
    fields = ["backend", "name", "description", "access", "scopes", "schema", "state", "since_approval"]
    can_act = [
        Action("approve", "Approve", "From the next call on it can be called, by clients that are granted its scopes.",
               "approve", lambda t: t.status in ("pending", "suspended") or _drifted(t), digest=approval.digest),
        Action("keep", "Keep suspended", "Every call of it goes on being refused. It leaves the inbox until its"
               " backend declares it otherwise again.",
               "keep", _waits, digest=approval.digest),
        Action("suspend", "Suspend", "From the next call on every call of it is refused.",
               "suspend", lambda t: t.status == "active", danger=True),
        Action("retire", "Retire", "It is over for good; every call of it is refused.",
               "retire", lambda t: t.status != "retired", danger=True),
    ]  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> Any:
        """The definitions that were approved may be large, and lists show none."""
        known = ApprovedDefinition.objects.defer("content")
        return super().get_queryset(request).prefetch_related("scopes", Prefetch("approved", known))

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **more: Any) -> Any:
        """A form that knows whether the viewer looks after scopes."""
        made: Any = super().get_form(request, obj, change, **more)
        made.may_loosen = request.user.has_perm("tools.change_scope")
        return made

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **more: Any) -> Any:
        return super().formfield_for_manytomany(db_field, request, widget=forms.CheckboxSelectMultiple, **more)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Its name says what it is; its state is changed by actions alone."""
        return ["backend", "name", "schema", "state", "since_approval"] if obj else []

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """A tool that is added here has no schema: only its backend declares one."""
        return self.fields if obj else ["backend", "name", "description", "access", "scopes", "starts"]

    # --- what it is --------------------------------------------------------------------------------------------

    def facts(self, tool: Tool) -> list[tuple[str, Any]]:
        """What approving lets happen, and what of it is another than was approved."""
        since = [("Since it was approved", self.since_approval(tool))] if approval.changed(tool) else []
        return [*since, *self._about(tool)]

    def _about(self, tool: Tool) -> list[tuple[str, Any]]:
        return [
            ("Backend", tool.backend),
            ("Description", visible(tool.description) or "none"),
            ("Access", tool.access),
            ("Scopes", self.needs(tool)),
            ("Input schema", self.schema(tool)),
        ]

    @admin.display(description="input schema")
    def schema(self, tool: Tool) -> str:
        """Indented JSON. It is the backend's text: escaped."""
        if tool.input_schema is None:
            return "none declared"
        text = visible(json.dumps(tool.input_schema, indent=2, ensure_ascii=False))
        return format_html('<pre class="raw" tabindex="0" aria-label="Input schema">{}</pre>', text)

    @admin.display(description="needs")
    def needs(self, tool: Tool) -> str:
        return ", ".join(scope.name for scope in tool.scopes.all()) or "a grant that names it"

    @admin.display(description="state", ordering="status")
    def state(self, tool: Tool) -> str:
        if _waits(tool) or _drifted(tool):
            return format_html('{} <span class="quiet small">changed since it was approved</span>', pill(tool.status))
        return pill(tool.status)

    @admin.display(description="approval")
    def since_approval(self, tool: Tool) -> str:
        """When it was approved, and what of it is another since."""
        kept = approval.approved(tool)
        if kept is None:
            return "never approved" if tool.status == "pending" else "from before definitions were kept"
        return render_to_string("admin/tool_difference.html", _since(tool, kept))

    # --- adding and editing ------------------------------------------------------------------------------------

    def save_model(self, request: HttpRequest, obj: Tool, form: Any, change: bool) -> None:
        """Only what the form changed is written: a declaration may have suspended the tool a moment ago."""
        if not change:
            obj.status = form.cleaned_data["starts"]
            super().save_model(request, obj, form, change)
            return
        if not self.may(request, "change"):
            raise PermissionDenied
        act(request, form.cleaned_data["change_reason"])
        held = Tool.objects.select_for_update().get(pk=obj.pk)
        if not request.user.has_perm("tools.change_scope") and loosened(held, form.cleaned_data["scopes"]):
            raise PermissionDenied
        columns = {field.name for field in Tool._meta.concrete_fields}
        obj.save(update_fields=[name for name in form.changed_data if name in columns])

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """What staff write of an active tool, they approve by it."""
        super().save_related(request, form, formsets, change)
        tool = Tool.objects.get(pk=form.instance.pk)
        if tool.status == "active":
            parts = form.changed_data if change else approval.PARTS
            approval.amend(tool, actor_of(request)[1], parts)

    # --- deciding ----------------------------------------------------------------------------------------------

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.decide_view)
        return [path("<int:object_id>/decide/", view, name="tools_tool_decide"), *super().get_urls()]

    def decide_view(self, request: HttpRequest, object_id: int) -> HttpResponse:
        """What a tool is, what changed, and every decision that it can wait for: one page, one reason, one click.
        GET shows; POST does the action that `decision` names, on what the page said."""
        form = ReasonForm(request.POST if request.method == "POST" else None)
        tool = self._seen(request, object_id)
        if request.method == "POST" and self._decided(request, tool, form):
            may_see = request.user.has_perm("audit.view_sighting")
            return HttpResponseRedirect(reverse("admin:inbox") if may_see else self.url_of(tool))
        tool = self._seen(request, object_id)  # as it is now, not as it was before the lock
        return TemplateResponse(request, "admin/tool_decide.html", self._to_decide(request, tool, form))

    def _seen(self, request: HttpRequest, object_id: int) -> Tool:
        tool = self.get_object(request, str(object_id))
        if tool is None:
            raise Http404
        if not self.has_view_permission(request, tool):
            raise PermissionDenied
        return tool

    def _decided(self, request: HttpRequest, tool: Tool, form: forms.Form) -> bool:
        if not self.may(request, "change"):
            raise PermissionDenied
        chosen = next((a for a in self.can_act if a.name == request.POST.get("decision")), None)
        if not form.is_valid():
            return False
        if chosen is None:
            form.add_error(None, "Choose what is to become of the tool.")
            return False
        try:
            messages.success(request, self._do(request, chosen, tool, form.cleaned_data))
        except Refused as error:
            form.add_error(None, str(error))
        except (IntegrityError, DataError) as error:
            form.add_error(None, words_of(error))
        return form.is_valid()

    def _to_decide(self, request: HttpRequest, tool: Tool, form: forms.Form) -> dict[str, Any]:
        kept = approval.approved(tool)
        can = [a for a in self.can_act if a.offered(tool)] if self.may(request, "change") else []
        return {
            **self.admin_site.each_context(request), **(_since(tool, kept) if kept else {}), "opts": self.opts,
            "tool": tool, "title": f"{tool} of {tool.backend}", "pill": pill(tool.status), "form": form,
            "decisions": can, "definition": approval.digest(tool), "facts": self._about(tool),
            "url": self.url_of(tool), "pinned": sorted(approval.pins() & set(approval.content(tool)["scopes"])),
        }  # fmt: skip

    def _set(self, tool: Tool, status: str) -> str:
        tool.status = status
        tool.save(update_fields=["status"])
        return f"{tool} is {status}."

    def approve(self, request: HttpRequest, tool: Tool, data: dict[str, Any]) -> str:
        """Can be called; what it is now is what is approved."""
        approval.keep(tool, actor_of(request)[1])
        return self._set(tool, "active")

    def keep(self, request: HttpRequest, tool: Tool, data: dict[str, Any]) -> str:
        """Stays as it is, and waits no more."""
        approval.settle(tool)
        return f"{tool} stays suspended."

    def suspend(self, request: HttpRequest, tool: Tool, data: dict[str, Any]) -> str:
        """Cannot, for now."""
        approval.before_change(tool)  # so that a change while it is suspended is seen
        approval.settle(tool)
        return self._set(tool, "suspended")

    def retire(self, request: HttpRequest, tool: Tool, data: dict[str, Any]) -> str:
        """Cannot, ever."""
        approval.settle(tool)
        return self._set(tool, "retired")
