"""The admin as a whole: navigation and pages by permission, nothing deleted, nothing changed on GET."""

import pytest
from django.contrib import admin
from django.test import Client as HttpClient
from django.urls import reverse

from audit import rollups
from audit.models import Head
from tests.staff import administrator, drained, member
from tests.world import World, build

OURS = ("clients", "tools", "audit")


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def http(world: World) -> HttpClient:
    return administrator()


def test_home_shows_the_log_and_what_waits(world: World, http: HttpClient) -> None:
    world.verify()
    drained()
    rollups.count()
    response = http.get("/admin/")
    head = Head.objects.get()
    assert response.context["head"].next == head.next > 0
    assert f"{head.next:,} record" in response.content.decode() and "Health of the log" in response.content.decode()


def test_home_of_an_empty_log_says_what_to_do(http: HttpClient) -> None:
    assert b"how to begin" in http.get("/admin/").content


def test_the_navigation_shows_what_the_viewer_may_see(world: World) -> None:
    text = member("vera", "clients.view_grant").get("/admin/").content.decode()
    assert "/admin/clients/grant/" in text
    assert "/admin/records/" not in text and "/admin/tools/backendkey/" not in text
    nobody = HttpClient().get("/admin/login/").content.decode()
    assert "<nav" not in nobody


def test_every_page_opens_and_none_changes_anything(world: World, http: HttpClient) -> None:
    world.verify(tool="nope")
    drained()
    version = Head.objects.get().policy
    for model, page in admin.site._registry.items():
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        response = http.get(reverse(f"{name}_changelist"))
        assert response.status_code == 200, name
        if page.has_add_permission(response.wsgi_request):
            assert http.get(reverse(f"{name}_add")).status_code == 200, name
        if (one := model._default_manager.first()) is not None:
            assert http.get(reverse(f"{name}_change", args=[one.pk])).status_code in (200, 302), name
            for action in getattr(page, "can_act", ()):
                assert http.get(reverse(f"{name}_act", args=[one.pk, action.name])).status_code in (200, 302), name
    drained()
    assert Head.objects.get().policy == version


def test_nothing_of_ours_is_deleted_by_the_stock_pages(world: World, http: HttpClient) -> None:
    world.verify()
    for model in admin.site._registry:
        if model._meta.app_label not in OURS or (one := model._default_manager.first()) is None:
            continue
        url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_delete", args=[one.pk])
        assert (http.get(url).status_code, http.post(url, {"post": "yes"}).status_code) == (403, 403), url
        assert model._default_manager.filter(pk=one.pk).exists()


def test_lists_of_policy_do_not_count_twice_or_without_bound() -> None:
    for model, page in admin.site._registry.items():
        if model._meta.app_label in OURS:
            assert page.show_full_result_count is False and page.actions is None, model
            assert page.paginator.MOST == 10_000, model  # type: ignore[attr-defined]


def test_pages_carry_the_strict_policy_and_no_inline_style_or_script(world: World, http: HttpClient) -> None:
    for url in ("/admin/", "/admin/records/", "/admin/clients/grant/", "/admin/clients/client/add/", "/admin/login/"):
        response = http.get(url, follow=True)
        policy = response["Content-Security-Policy"]
        assert "script-src 'self'" in policy and "unsafe" not in policy
        text = response.content.decode()
        assert " style=" not in text and "<style" not in text and "onclick" not in text and "<script>" not in text


HOSTILE = [
    "q=%00", "q=" + "x" * 5000, "q=%ED%A0%80", "p=99999999999999999999", "p=-1", "o=99.-99.x", "nonsense__exact=1",
    "e=1", "id__exact=%00", "pk__in=x,y", "window=%00", "since=%00", "client=%00", "_popup=1&_to_field=%00",
]  # fmt: skip
KEYS = ["%00", "x" * 300, "-1", "9" * 40, "%ED%A0%80"]


def test_hostile_input_to_a_list_or_a_key_is_never_a_failure(world: World, http: HttpClient) -> None:
    http.raise_request_exception = False
    paths = [f"{path}?{query}" for path in ("/admin/", "/admin/reasons/", "/reference") for query in HOSTILE]
    for number, model in enumerate(admin.site._registry):  # half of what is hostile to each, the others to the next
        found = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
        paths += [f"{found}?{query}" for query in HOSTILE[number % 2 :: 2]]
        paths += [f"{found}{key}/change/" for key in KEYS[number % 2 :: 2]]
    assert [path for path in paths if http.get(path).status_code >= 500] == []
