# Tries verify.py, keys.py and follow.py, which docs/verifying_test.go takes out of the page.
import datetime, json, sys, threading, time

import jwt
import jwt.api_jwt

from follow import Ended, follow
from keys import Keys
from verify import Verifier

settings = json.loads(sys.argv[1])


def say(verdict, name=""):
    print(json.dumps({"name": name, "verdict": verdict}), flush=True)


def verdict(check, token):
    try:
        check(token)
        return "accept"
    except Exception as e:
        return f"refuse: {e}"


class GivenKeys:
    """A key set that is not fetched."""

    def __init__(self, keys):
        self.keys = jwt.PyJWKSet.from_dict(keys)

    def get_signing_key(self, kid):
        try:
            return self.keys[kid]
        except KeyError as e:
            raise jwt.PyJWKClientError(str(e)) from e


class Clock(datetime.datetime):
    moment = None

    @classmethod
    def now(cls, tz=None):
        return cls.moment


if "vectors" in settings:
    jwt.api_jwt.datetime = Clock  # PyJWT has no setting for the time
    with open(settings["vectors"]) as file:
        vectors = json.load(file)
    for v in vectors["vectors"]:
        Clock.moment = datetime.datetime.fromisoformat(v["time"])
        ended = Ended()
        for entry in vectors["feeds"][v["feed"]]["revocations"]:
            ended.add(entry)
        verifier = Verifier(vectors["issuer"], vectors["audience"], GivenKeys(vectors["keys"][v["keys"]]), ended)
        say(verdict(verifier.check, v["token"]).split(":")[0], v["name"])
else:
    ended, stopped = Ended(), threading.Event()
    follower = threading.Thread(
        target=follow, args=(ended, settings["feed"], settings["id"], settings["secret"], settings["name"], stopped)
    )
    follower.start()
    verifier = Verifier(settings["issuer"], settings["audience"], Keys(settings["jwks"]), ended)
    for line in sys.stdin:
        while ended.lag() > 60:
            time.sleep(0.02)
        say(verdict(verifier.check, line.strip()))
    stopped.set()
    follower.join()
