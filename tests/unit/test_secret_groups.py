"""Secret sums beside robust rules, on updates that can be reckoned by hand."""

import numpy as np
import pytest

from fl_utils.experiments import secret_groups
from fl_utils.experiments.poisoning_plan import STRENGTHS
from fl_utils.trust.messages import MessageError


def alike(n=10, d=30):
    """All hospitals want nearly the same, so that only attackers move the result."""
    return (1 + 0.01 * np.random.default_rng(0).normal(size=(n, d))).astype(np.float32)


def errors_of(table, rule, size):
    return table[(table["rule"] == rule) & (table["group_size"] == size)].set_index("attackers")["error"]


def test_errors_follow_the_number_of_spoilt_groups():
    table = secret_groups.errors(alike(), seed=0)
    assert set(table["group_size"]) == {1, 2, 5, 10} and set(table["attackers"]) == set(range(5))
    single = errors_of(table, "Median of group sums", 1)
    assert (single < 0.05).all()  # fewer than half of ten
    whole = errors_of(table, "Median of group sums", 10)
    # The mean of ten, of which m are turned round and five times as long.
    for num in range(5):
        assert whole[num] == pytest.approx(num * (1 + STRENGTHS["sign_flip"]) / 10, abs=0.02)
    pairs = errors_of(table, "Median of group sums", 2)
    assert pairs[2] < 0.05 < pairs[4]  # two bad ones spoil two of five pairs at most; four spoil up to four
    bounded = errors_of(table, "Mean, norms bounded", 10)
    for num in range(5):
        assert bounded[num] == pytest.approx(2 * num / 10, abs=0.02)


def test_encrypted_groups_give_the_plain_means_and_the_server_sees_nothing():
    honest = alike(6, 40)
    seen, groups = secret_groups.encrypted_groups(honest, num_attackers=2, seed=1)
    assert (groups["difference"] < 1e-6).all() and groups["attackers"].sum() == 2 and len(groups) == 3
    assert seen["attacker"].sum() == 2
    assert seen.loc[seen["attacker"] == 1, "norm"].min() > 4 * seen.loc[seen["attacker"] == 0, "norm"].max()
    # Ciphertexts are packed random bytes: lengths differed by 0.3 % and means by 3.2 at most in 240 of them, by chance.
    assert seen["upload_bytes"].max() < 1.01 * seen["upload_bytes"].min()
    assert seen["mean_byte"].between(127.5 - 10, 127.5 + 10).all()


def test_a_ciphertext_is_no_update_for_the_server():
    from fl_utils.trust.encrypted import new_federation

    hospitals, server = new_federation(["a", "b"])
    message = hospitals["a"].encrypt_update([alike(1, 8)[0]], weight=1.0, round_num=1)
    assert not hasattr(server, "decrypt_mean")
    with pytest.raises(MessageError):  # a hospital's upload, unsummed, is refused even by who holds the key
        hospitals["b"].decrypt_mean(message, round_num=1, shapes=[(8,)])
