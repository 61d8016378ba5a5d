// r3labs/sse in a loop, with a validator and a reconnect strategy.
//
// The library stops at a clean end, and at the first error that comes 15 minutes or more after it began. It goes on after
// 401, ignores `retry:`, and waits longer with each reconnect, up to a minute, however well the connections before have
// worked.
package main

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/r3labs/sse/v2"
	"gopkg.in/cenkalti/backoff.v1"
	"ssehub.invalid/clients/report"
)

var errRefused = errors.New("the server has refused the request")

// waits is an exponential backoff without an end, unless the hub has said how long to wait.
type waits struct {
	*backoff.ExponentialBackOff
	retry time.Duration
}

func (w *waits) NextBackOff() time.Duration {
	wait := w.retry
	w.retry = 0
	if wait == 0 {
		wait = w.ExponentialBackOff.NextBackOff()
	}
	return wait
}

func main() {
	size := 1 << 16
	if report.LineBytes() > 0 {
		size = report.LineBytes()
	}
	strategy := &waits{ExponentialBackOff: backoff.NewExponentialBackOff()}
	strategy.MaxElapsedTime = 0
	strategy.MaxInterval = 5 * time.Second
	client := sse.NewClient(report.URL, sse.ClientMaxBufferSize(size))
	client.ResponseValidator = func(_ *sse.Client, response *http.Response) error {
		switch {
		case response.StatusCode == http.StatusOK:
			report.Opened()
			strategy.Reset()
			return nil
		case response.StatusCode >= 400 && response.StatusCode < 500:
			response.Body.Close()
			return backoff.Permanent(errRefused)
		default:
			response.Body.Close()
			return fmt.Errorf("status %d", response.StatusCode)
		}
	}
	client.ReconnectNotify = func(err error, _ time.Duration) { report.Error(err) }
	client.ReconnectStrategy = strategy
	for {
		err := client.SubscribeRaw(func(event *sse.Event) {
			report.Message(string(event.Event), string(event.ID), string(event.Data))
			if milliseconds, err := strconv.Atoi(string(event.Retry)); err == nil {
				strategy.retry = time.Duration(milliseconds) * time.Millisecond
			}
		})
		if errors.Is(err, errRefused) {
			report.Ended(err)
		}
		report.Error(errors.New("the response has ended"))
		time.Sleep(strategy.NextBackOff())
	}
}
