"""Which limits hold for whom."""

from corral.core.limits import Limit, Rules, Scope, divided, rules_for
from corral.core.principal import Principal, Quota

DEFAULT = Quota(requests=600, tokens=0, in_flight=0, tokens_day=0, tokens_month=0, max_tokens=0, max_context=0)


def test_a_key_without_limits_of_its_own_has_the_default() -> None:
    rules = rules_for(Principal("team_a"), "llama", DEFAULT)
    assert rules == Rules("team_a", "client:team_a", (Scope("", ((Limit.REQUESTS, 600),)),))
    assert (rules.weigh, rules.settle, rules.least_tokens) == (False, False, None)


def test_what_a_key_says_stands_in_place_of_the_default_field_by_field() -> None:
    rules = rules_for(Principal("a", quota=Quota(tokens=5000, in_flight=3)), "llama", DEFAULT)
    assert rules.scopes == (Scope("", ((Limit.REQUESTS, 600), (Limit.TOKENS, 5000), (Limit.IN_FLIGHT, 3))),)
    assert (rules.weigh, rules.settle, rules.least_tokens) == (True, True, 5000)


def test_none_of_a_default_is_said_with_zero() -> None:
    assert rules_for(Principal("a", quota=Quota(requests=0)), "llama", DEFAULT).scopes == ()


def test_what_is_said_of_a_model_holds_beside_the_rest_and_the_first_pattern_that_says_it_counts() -> None:
    quotas = (("llama-*", Quota(requests=5)), ("*", Quota(requests=50, tokens_day=10)))
    principal = Principal("a", model_quotas=quotas)
    whole = Scope("", ((Limit.REQUESTS, 600),))
    assert rules_for(principal, "llama-3", DEFAULT).scopes == (
        whole,
        Scope("llama-3", ((Limit.REQUESTS, 5), (Limit.TOKENS_DAY, 10))),
    )
    assert rules_for(principal, "qwen", DEFAULT).scopes == (
        whole,
        Scope("qwen", ((Limit.REQUESTS, 50), (Limit.TOKENS_DAY, 10))),
    )
    assert rules_for(Principal("a", model_quotas=quotas[:1]), "qwen", DEFAULT).scopes == (whole,)


def test_of_two_limits_on_a_request_the_stricter_holds() -> None:
    quotas = (("*", Quota(max_tokens=50, max_context=900)),)
    rules = rules_for(Principal("a", quota=Quota(max_tokens=100), model_quotas=quotas), "llama", DEFAULT)
    assert (rules.max_tokens, rules.max_context, rules.weigh) == (50, 900, True)


def test_a_share_is_rounded_down_to_nothing_if_need_be() -> None:
    rules = rules_for(Principal("a", quota=Quota(in_flight=3, tokens=9)), "llama", DEFAULT)
    share = divided(rules, 4)
    assert share.scopes == (Scope("", ((Limit.REQUESTS, 150), (Limit.TOKENS, 2), (Limit.IN_FLIGHT, 0))),)
    assert share.divided
