// launchdarkly/eventsource with its default options.
package main

import (
	"github.com/launchdarkly/eventsource"
	"ssehub.invalid/clients/report"
)

func main() {
	stream, err := eventsource.SubscribeWithURL(report.URL)
	if err != nil {
		report.Ended(err)
	}
	report.Opened()
	for {
		select {
		case event := <-stream.Events:
			report.Message(event.Event(), event.(eventsource.EventWithLastID).LastEventID(), event.Data())
		case err := <-stream.Errors:
			report.Error(err)
		}
	}
}
