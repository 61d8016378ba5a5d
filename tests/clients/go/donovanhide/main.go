// donovanhide/eventsource, as its documentation shows.
package main

import (
	"github.com/donovanhide/eventsource"
	"ssehub.invalid/clients/report"
)

func main() {
	stream, err := eventsource.Subscribe(report.URL, "")
	if err != nil {
		report.Ended(err)
	}
	report.Opened()
	for {
		select {
		case event := <-stream.Events:
			report.Message(event.Event(), event.Id(), event.Data())
		case err := <-stream.Errors:
			report.Error(err)
		}
	}
}
