"""What the admin's templates show of an id: with a button that copies the whole of it."""

from django.template import Context, Template


def shown(template: str, **context: object) -> str:
    return Template("{% load muniment %}" + template).render(Context(context))


def test_an_id_comes_with_a_button_that_copies_the_whole_of_it() -> None:
    html = shown('{% copy uid shown=short what="user id" %}', uid="usr_0123456789abcdef", short="usr_012…def")
    assert 'data-copy="usr_0123456789abcdef"' in html
    assert ">usr_012…def<" in html
    assert 'Copy<span class="unseen"> user id</span>' in html


def test_what_is_copied_is_escaped() -> None:
    html = shown("{% copy name %}", name='"><script>alert(1)</script>')
    assert "<script>" not in html
    assert 'data-copy="&quot;&gt;&lt;script&gt;' in html


def test_nothing_to_copy_has_no_button() -> None:
    assert shown("{% copy name %}", name=None) == shown("{% copy name %}", name="") == "—"
