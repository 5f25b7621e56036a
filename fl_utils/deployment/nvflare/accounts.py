"""Who may sign in at a hospital's page, and whom its owner no longer lets in."""

import dataclasses
import functools
import hashlib
from datetime import datetime, timedelta

from werkzeug.security import check_password_hash, generate_password_hash

from fl_utils.deployment.nvflare import database
from fl_utils.deployment.nvflare.database import Database, time_text
from fl_utils.deployment.nvflare.settings import ROLES, ConsortiumError

MIN_PASSWORD = 8  # NIST SP 800-63B
MAX_TRIES, LOCKED_S = 5, 60


@dataclasses.dataclass(frozen=True)
class Account:
    """Somebody who may sign in.

    Attributes:
      name: as in the person's certificate, if there is one.
      role: of `settings.ROLES`.
      expires: UTC; from then on nobody signs in with it.
    """

    name: str
    role: str
    expires: datetime

    @property
    def role_word(self) -> str:
        return ROLES[self.role]

    @property
    def expired(self) -> bool:
        return database.utc_now() >= self.expires


class Accounts(Database):
    """The part of the store that is about people."""

    def add_account(self, name: str, password: str, role: str, days: int, *, by: str = "owner") -> Account:
        """Makes an account that ends after so many days.

        Raises:
          ValueError: name, password, role or days cannot be, or the name is taken.
        """
        _checked_role(role)
        if not name.strip() or len(name) > 200 or days < 1:
            raise ValueError(f"The account's name is {name!r}, its days {days}; expected a name, and at least 1 day.")
        expires, hashed = time_text(database.utc_now() + timedelta(days=days)), _hashed(password)
        with self._change() as (db, tell):
            if db.execute("SELECT 1 FROM accounts WHERE name = ?", (name,)).fetchone():
                raise ValueError(f"There is an account {name!r} already; remove it first, or give it a new password.")
            db.execute("INSERT INTO accounts VALUES (?, ?, ?, ?)", (name, hashed, role, expires))
            tell("account added", name=name, role=role, expires_utc=expires, by=by)
        return self.account(name)

    def set_password(self, name: str, password: str, *, by: str = "owner") -> None:
        """Gives an account a new password, and ends a lock.

        Raises:
          ValueError: the password is too short.
          ConsortiumError: there is no such account.
        """
        hashed = _hashed(password)
        with self._change() as (db, tell):
            if not db.execute("UPDATE accounts SET password = ? WHERE name = ?", (hashed, name)).rowcount:
                raise ConsortiumError(f"There is no account {name!r}.")
            db.execute("DELETE FROM tries WHERE name = ?", (name,))
            tell("password changed", name=name, by=by)

    def remove_account(self, name: str, *, by: str = "owner") -> None:
        """Raises ConsortiumError where there is no such account."""
        with self._change() as (db, tell):
            if not db.execute("DELETE FROM accounts WHERE name = ?", (name,)).rowcount:
                raise ConsortiumError(f"There is no account {name!r}.")
            db.execute("DELETE FROM tries WHERE name = ?", (name,))
            tell("account removed", name=name, by=by)

    def sign_in(self, name: str, password: str) -> Account | None:
        """Whose name and password these are; None if they are wrong, or the account is locked or over: nobody learns which.

        After MAX_TRIES wrong ones in a row an account is locked for LOCKED_S seconds. A name that nobody has costs the same
        work, and does not enter the log: people mistake the fields, and it may be a password.
        """
        found = self._rows("SELECT * FROM accounts WHERE name = ?", name)
        known = found[0]["name"] if found else ""
        counted = self._count_try(known)  # before the password is looked at: many guesses at once are no way round the lock
        fits = check_password_hash(found[0]["password"] if found else _nobodys(), password)
        account = _account(found[0]) if found else None
        good = counted and fits and account is not None and not account.expired and not self.is_revoked(name)
        with self._change() as (db, tell):
            if good:
                db.execute("DELETE FROM tries WHERE name = ?", (known,))
                tell("signed in", name=known)
            else:
                reason = ("unknown name" if account is None else "locked" if not counted else "wrong password" if not fits
                          else "account is over" if account.expired else "revoked")
                tell("sign-in refused", name=known or None, reason=reason)
        return account if good else None

    def account(self, name: str) -> Account | None:
        return next((_account(row) for row in self._rows("SELECT * FROM accounts WHERE name = ?", name)), None)

    def password_stamp(self, name: str) -> str:
        """Another text after each change of the password, and for an account that is made anew; "" where there is none."""
        found = self._rows("SELECT password FROM accounts WHERE name = ?", name)  # salted, so equal passwords differ
        return hashlib.sha256(found[0]["password"].encode()).hexdigest()[:32] if found else ""

    def accounts(self) -> list[Account]:
        return [_account(row) for row in self._rows("SELECT * FROM accounts ORDER BY name")]

    def revoke(self, name: str, reason: str, by: str) -> None:
        """Lets a person (the certificate's name) in no more, whatever the consortium says; ValueError without a reason."""
        if not name.strip() or not reason.strip():
            raise ValueError("A revocation needs a name and a reason.")
        with self._change() as (db, tell):
            db.execute("INSERT OR REPLACE INTO revoked VALUES (?, ?)", (name, reason))
            tell("person revoked", name=name, reason=reason, by=by)

    def restore(self, name: str, by: str) -> None:
        """Lets a person in again; ConsortiumError where the person was not revoked here."""
        with self._change() as (db, tell):
            if not db.execute("DELETE FROM revoked WHERE name = ?", (name,)).rowcount:
                raise ConsortiumError(f"{name} has not been revoked by this hospital.")
            tell("person restored", name=name, by=by)

    def is_revoked(self, name: str) -> bool:
        return name in self.revoked()

    def revoked(self) -> dict[str, str]:
        """Name -> reason."""
        return {row["name"]: row["reason"] for row in self._rows("SELECT * FROM revoked ORDER BY name")}

    def _count_try(self, name: str) -> bool:
        """Counts a try before it is made; False while the account is locked."""
        now = database.utc_now().timestamp()
        with self._change() as (db, _):
            row = db.execute("SELECT * FROM tries WHERE name = ?", (name,)).fetchone()
            if row and now < row["locked_until"]:
                return False
            wrong = 1 + (row["wrong"] if row and not row["locked_until"] else 0)
            locked_until = now + LOCKED_S if wrong >= MAX_TRIES else 0.0
            db.execute("INSERT OR REPLACE INTO tries VALUES (?, ?, ?)", (name, wrong, locked_until))
        return True


def _account(row) -> Account:
    return Account(row["name"], row["role"], datetime.fromisoformat(row["expires_utc"]))


def _checked_role(role: str) -> None:
    if role not in ROLES:
        raise ValueError(f"The role is {role!r}; expected one of {', '.join(ROLES)}.")


def _hashed(password: str) -> str:
    if len(password) < MIN_PASSWORD:
        raise ValueError(f"The password has {len(password)} characters; expected at least {MIN_PASSWORD}.")
    return generate_password_hash(password, method="scrypt")


@functools.cache
def _nobodys() -> str:
    """What the password of a name that nobody has is compared with."""
    return generate_password_hash("nobody's", method="scrypt")
