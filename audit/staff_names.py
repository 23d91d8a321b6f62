"""What members of staff are called today, for pages that name them by number in what they store."""

from collections.abc import Iterable

from django.contrib.auth import get_user_model

from audit.record_words import actor_words


def names_of(actors: Iterable[str | None]) -> dict[str, str]:
    """Actors as the log names them -> names for people: of staff their own, of others words."""
    wanted = {actor for actor in actors if actor}
    numbers = {actor.partition(":")[2]: actor for actor in wanted if actor.startswith("staff:")}
    found = {actor: actor_words(actor) for actor in wanted}
    for user in get_user_model().objects.filter(pk__in=[number for number in numbers if number.isdecimal()]):
        found[numbers[str(user.pk)]] = user.get_full_name() or user.get_username()
    return found
