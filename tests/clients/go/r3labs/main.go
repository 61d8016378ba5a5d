// r3labs/sse, as its README shows.
package main

import (
	"time"

	"github.com/r3labs/sse/v2"
	"ssehub.invalid/clients/report"
)

func main() {
	client := sse.NewClient(report.URL)
	if size := report.LineBytes(); size > 0 {
		client = sse.NewClient(report.URL, sse.ClientMaxBufferSize(size))
	}
	client.OnConnect(func(*sse.Client) { report.Opened() })
	client.ReconnectNotify = func(err error, _ time.Duration) { report.Error(err) }
	report.Ended(client.SubscribeRaw(func(event *sse.Event) {
		report.Message(string(event.Event), string(event.ID), string(event.Data))
	}))
}
