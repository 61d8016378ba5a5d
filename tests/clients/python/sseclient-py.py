"""sseclient-py with requests. It does not reconnect: this program does, with the last id and the last `retry`."""

from __future__ import annotations

import time

import requests
import sseclient
from report import URL, ended, error, message, opened

last_id, retry_seconds = "", 1.0
while True:
    try:
        response = requests.get(URL, stream=True, headers={"Last-Event-ID": last_id} if last_id else {})
        response.raise_for_status()
        opened()
        for event in sseclient.SSEClient(response).events():
            message(event.event, event.id, event.data)
            last_id = event.id or last_id
            if event.retry is not None:
                retry_seconds = int(event.retry) / 1000
        error("the response has ended")
    except requests.HTTPError as exc:
        ended(exc)
    except requests.RequestException as exc:
        error(exc)
    time.sleep(retry_seconds)
