// tmaxmax/go-sse, as its README shows.
package main

import (
	"net/http"
	"time"

	"github.com/tmaxmax/go-sse"
	"ssehub.invalid/clients/report"
)

func main() {
	request, err := http.NewRequest(http.MethodGet, report.URL, http.NoBody)
	if err != nil {
		report.Ended(err)
	}
	client := sse.Client{OnRetry: func(err error, _ time.Duration) { report.Error(err) }}
	connection := client.NewConnection(request)
	if size := report.LineBytes(); size > 0 {
		connection.Buffer(nil, size)
	}
	connection.SubscribeToAll(func(event sse.Event) { report.Message(event.Type, event.LastEventID, event.Data) })
	report.Ended(connection.Connect())
}
